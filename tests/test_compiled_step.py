"""torch.compile of the whole step: one graph, no break, no recompilation after the first step, the same numbers."""

import pytest
import torch
from families import FAMILIES, tiny_model
from runs import trainer_of

from singer_hf.objectives import OBJECTIVES


def check_one_graph(tmp_path, family, objective, **options):
    models = tiny_model(family, num_hidden_layers=4), tiny_model(family, hidden_size=16)
    trainer = trainer_of(tmp_path, *models, objective=objective, **options)
    distiller = trainer.model.train()
    torch._dynamo.reset()
    # Dynamo's own tracing, which finds breaks and recompilations, without a backend's code generation.
    compiled = torch.compile(distiller, backend="eager", fullgraph=True)
    seeds = torch.arange(4)
    for step in range(3):
        pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
        with torch._dynamo.config.patch(error_on_recompile=step > 0):
            loss = compiled(pixels, sample_seed=seeds + step)["loss"]
        torch.testing.assert_close(loss, distiller(pixels, sample_seed=seeds + step)["loss"], rtol=1e-5, atol=1e-7)
        loss.backward()


def test_a_step_compiles_to_one_graph(tmp_path):
    check_one_graph(tmp_path, "vit", "singer")


def test_a_step_with_options_beyond_the_paper_compiles_to_one_graph(tmp_path):
    check_one_graph(tmp_path, "vit", "fitnet", target_normalization="layer_norm", outlier_mask_ratio=1.2)
    check_one_graph(tmp_path, "vit", "singer", outlier_min_ratio=1.2, detach_target=True, prefix_share=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_and_objective_compiles_to_one_graph(tmp_path, family, objective):
    check_one_graph(tmp_path, family, objective)
