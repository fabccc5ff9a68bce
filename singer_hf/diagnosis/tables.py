"""Tables of a recorded diagnosis (its JSON), each beside the paper's figures where the paper has such a table."""

from __future__ import annotations

from typing import Any

from .table import Table, beside, change, fixed, number, percent, spread

PAPER = "paper, ViT-L"


def layer_table(result: dict[str, Any]) -> Table:
    """Norms and outliers of every block of the teacher."""
    rows = []
    for layer in result["teacher"]["layers"]:
        norms, outliers, traits = layer["norms"], layer["outliers"], layer["traits"]
        marked = outliers["verdict"] != "none"
        rows.append(
            [
                str(layer["layer"]),
                number(norms["median"]),
                number(norms["p99"]),
                number(norms["largest"]),
                number(layer["peak_to_median"], 2),
                number(outliers["threshold"]),
                percent(outliers["share"], 2),
                number(outliers["ratio"], 2) if marked else "–",
                percent(traits["gradient_share"]) if marked else "–",
                percent(traits["loss_share"]) if marked else "–",
                outliers["verdict"],
            ]
        )
    return Table(
        "Norms of every block",
        [
            "block",
            "median",
            "99 %",
            "largest",
            "peak / median",
            "τ",
            "outliers",
            "ratio",
            "gradient",
            "loss",
            "verdict",
        ],
        rows,
        "Patch norms ‖F‖ behind each block, prefix tokens left out. Peak / median: of an image, mean over images. "
        "Outliers: share of patches that reach τ and stand out of their own image. Ratio: median norm of outliers "
        "over median norm. Gradient and loss: share of an MSE feature loss's gradient norm, and of the loss, that "
        "falls on outliers while the student's prediction is small.",
    )


def traits_table(result: dict[str, Any]) -> Table:
    """Where outliers are and what they are aligned with."""
    rows = []
    for layer in result["teacher"]["layers"]:
        traits = layer["traits"]
        if layer["outliers"]["verdict"] == "none":
            continue
        rows.append(
            [
                str(layer["layer"]),
                f"{percent(traits['border_share'])} ({percent(traits['border_expected'])})",
                f"{percent(traits['background_share'])} (25 %)",
                f"{traits['variance_rank']:.2f} (0.50)",
                beside(traits["input_cosine"], traits["input_cosine_others"]),
                beside(traits["output_cosine"], traits["output_cosine_others"]),
            ]
        )
    return Table(
        "Where outliers are, and along what",
        ["block", "on the border", "low variance", "variance rank", "|cos| to u₁", "|cos| to v₁"],
        rows,
        "In brackets: chance, or the other patches. Border: the outermost ring. Low variance: among the quarter of "
        "the image's patches with the lowest pixel variance. A token x passes a feed-forward surrogate as x W̃: u₁, "
        "the leading left singular vector, is the input that the next block (behind the last one: the last itself) "
        "amplifies most; v₁, the leading right one of the block's own W̃, is what the block itself amplifies into.",
    )


def table_2(result: dict[str, Any]) -> Table:
    """Teacher–student similarity (Table 2), of the last pair of blocks."""
    rows = [
        [
            name,
            f"{last['teacher_layer']} / {last['student_layer']}",
            f"{last['gram_distance_per_patch']:.3f}",
            fixed(last["cka"], 3),
            f"{last['peak_to_median']:.2f}",
            f"{percent(last['remaining_loss_on_outliers'])} ({last['trained_to']})" if last["trained_to"] else "–",
        ]
        for name, layers in result["students"].items()
        for last in layers[-1:]
    ]
    paper = [("FitNet", 0.237, 0.732), ("ViTKD", 0.520, 0.745), ("SiNGER", 0.130, 0.660)]
    return Table(
        "Teacher–student similarity (Table 2)",
        ["student", "blocks", "Gram distance ↓", "CKA", "peak / median", "remaining loss on outliers"],
        rows,
        "Blocks: of the teacher / of the student, the last pair that the run trained (of a student by itself: the "
        "last ones). The teacher is unrefined, patches alone. Gram distance: ‖G(F_T) − G(F_S)‖_F over the number of "
        f"patches, mean over images. CKA: linear, over all patches; it needs {result['images_for_cka']} images here. "
        "Peak / median: of the student's own patch norms. Remaining loss: how much of what is left of the run's "
        "feature loss falls on the teacher's outliers; in brackets the target that loss is against, F̂ where the run "
        "had an adapter, else F: shares of two different losses.",
        [[f"{name} ({PAPER} → ViT-T)", "–", f"{gram:.3f}", f"{cka:.3f}", "–", "–"] for name, gram, cka in paper],
    )


def table_3(result: dict[str, Any]) -> Table:
    """Cosine between F and F̂ at l and l+1 (Table 3)."""
    rows = []
    for name, layer in _effects(result):
        following = layer["cosine_next_block"]
        rows.append(
            [
                f"{name}, block {layer['layer']}",
                spread(layer["cosine"], 4),
                spread(following, 4) if following else "–",
                fixed(layer["cosine_of_outliers"], 3),
                fixed(layer["cosine_of_others"], 4),
            ]
        )
    return Table(
        "Cosine between F and F̂ (Table 3)",
        ["refinement", "at l", "at l+1", "outliers at l", "others at l"],
        rows,
        "Mean over patches of an image; mean ± standard deviation over images. At l+1: outputs of the real block l+1 "
        "from F and from F̂; no block follows the last. Low for outliers and high for the others is what is wanted.",
        [[f"trained, block 17 ({PAPER})", "0.9566 ± 0.0038", "0.9731 ± 0.0021", "–", "–"]],
    )


def table_5a(result: dict[str, Any]) -> Table:
    """Energy of Φ_up and Φ_down in the top and bottom quarter of W̃'s left singular vectors (Table 5a)."""
    rows = [
        [
            f"{name}, block {layer['layer']}{', norms folded' if layer['fold_layer_norm'] else ''}",
            *(f"{layer['energy'][factor][part]:.4f}" for factor in ("up", "down") for part in ("prob", "safe")),
        ]
        for name, layer in _effects(result)
    ]
    paper = [
        [f"nullspace, block {layer} ({PAPER})", *cells]
        for layer, cells in (
            (17, ["0.1479", "0.8337", "0.2847", "0.5485"]),
            (23, ["0.1833", "0.7589", "0.2746", "0.5774"]),
        )
    ]
    return Table(
        "Energy of the adapter (Table 5a)",
        ["refinement", "Φ_up: E_prob ↓", "Φ_up: E_safe ↑", "Φ_down: E_prob ↓", "Φ_down: E_safe ↑"],
        rows,
        "Share of ‖Φ‖²_F in the span of the first (prob) and last (safe) quarter of the left singular vectors of the "
        "next block's W̃; a random matrix has 0.25 in each. Norms folded: of the W̃ with LayerNorm and LayerScale, "
        "which that adapter was made from; of the plain W̃ otherwise.",
        paper,
    )


def table_5b(result: dict[str, Any]) -> Table:
    """Gram distances ‖G(A) − G(B)‖_F (Table 5b)."""
    rows = []
    for name, layer in _effects(result):
        following = layer["gram_distance_next_block"]
        rows.append(
            [
                f"F_T and F̂_T: {name}, block {layer['layer']}",
                spread(layer["gram_distance"], 2),
                f"{layer['gram_distance']['median']:.2f}",
                spread(following, 2) if following else "–",
            ]
        )
    for name, layers in result["students"].items():
        for layer in layers:
            for key, what in (("gram_distance", "F_T"), ("gram_distance_to_refined", "F̂_T")):
                if layer[key]:
                    rows.append(
                        [
                            f"{what} and student: {name}, block {layer['teacher_layer']}",
                            spread(layer[key], 2),
                            f"{layer[key]['median']:.2f}",
                            "–",
                        ]
                    )
    paper = [
        [f"F_T and F̂_T ({PAPER})", "7.25 ± 0.84", "7.19", "–"],
        [f"F_T and student ({PAPER})", "41.71 ± 7.01", "–", "–"],
    ]
    patches = result["teacher"]["patches_per_image"]
    return Table(
        "Gram distances (Table 5b)",
        ["between", "mean ± deviation", "median", "behind block l+1"],
        rows,
        f"‖G(A) − G(B)‖_F of an image, over images. It grows with the number of patches: {patches} here, 196 in the "
        "paper. F̂_T: by the adapter of the student's own run.",
        paper,
    )


def table_7(result: dict[str, Any]) -> Table:
    """Norm gain through a block's parts (Table 7)."""
    gains = result["teacher"]["norm_gain"]
    paper = {
        "fc1": ("0.0719", "0.0714", "0.0844"),
        "fc2": ("0.7988", "0.7945", "0.8571"),
        "feed_forward": ("0.1871", "0.1852", "0.2210"),
        "attention": ("0.1417", "0.1415", "0.1611"),
    }
    names = {
        "fc1": "fc1, out / in",
        "fc2": "fc2, out / in",
        "feed_forward": "stream over the feed-forward, growth",
        "attention": "stream over self-attention, growth",
    }
    rows = []
    for gain, name in names.items():
        values = gains["all_blocks"][gain]
        rows.append([name, *(f"{values[key]:.4f}" for key in ("mean", "median", "p95")), " / ".join(paper[gain])])
    return Table(
        "Norm gain through a block (Table 7)",
        ["part", "mean", "median", "95 %", PAPER],
        rows,
        "Over all patches of all blocks. Growth: norm behind over norm in front, less 1.",
    )


def table_8(result: dict[str, Any]) -> Table:
    """Deviation of the real block's output under perturbations in null directions (Table 8)."""
    rows = [
        [f"{basis}, block {int(layer) + 1}", *(fixed(values[key], 4) for key in ("l2", "cosine", "cka", "update_l2"))]
        for layer, of in result["perturbations"].items()
        for basis, values in of.items()
    ]
    paper = [
        [f"feed-forward surrogate ({PAPER})", "0.169", "0.9787", "0.9975", "–"],
        [f"full Jacobian ({PAPER})", "0.191", "0.9564", "0.9947", "–"],
    ]
    size = result["options"]["perturbation_size"]
    counts = next((values for of in result["perturbations"].values() for values in of.values()), None)
    images = (
        ""
        if counts is None
        else (
            f" Bases from {counts['basis_images']} images, measured on {counts['images']} others; CKA needs at least "
            f"{result['images_for_cka']}."
        )
    )
    return Table(
        "Perturbing a real block in null directions (Table 8)",
        ["basis", "L2 ↓", "cosine ↑", "CKA ↑", "L2 of the update ↓"],
        rows,
        f"Every patch is perturbed by {size:.0%} of its norm in a random direction of the basis of rank "
        f"{result['rank']}. L2: relative change of the block's output; it contains the perturbation itself, which the "
        "residual stream passes on. The update is what the block adds. Random: an arbitrary basis, which nothing "
        f"makes null.{images}",
        paper,
    )


def effect_table(result: dict[str, Any]) -> Table:
    """Norms before and after refinement (Figure 6 in numbers), the closed form beside the trained adapter."""
    rows = []
    for name, layer in _effects(result):
        rows.append(
            [
                f"{name}, block {layer['layer']}",
                str(layer["rank"]),
                change(layer["peak_to_median"], lambda v: f"{v:.2f}"),
                change(layer["share_of_outliers"], lambda v: percent(v, 2)),
                change(layer["mean_norm_of_outliers"], number),
                change(layer["loss_share_of_outliers"], percent),
                change({"before": layer["norms"]["before"]["median"], "after": layer["norms"]["after"]["median"]}),
                layer["outliers_after"]["verdict"],
            ]
        )
    return Table(
        "Norms before → after refinement (Figure 6)",
        ["refinement", "r", "peak / median", "outliers", "norm of outliers", "loss on outliers", "median", "verdict"],
        rows,
        "Outliers: share of patches that reach the unrefined layer's τ and stand out of their image. "
        "Norm and loss: of the unrefined features' outliers. Verdict: of the rule, applied to the refined norms.",
    )


def _effects(result: dict[str, Any]):
    for name, layers in result["refinements"].items():
        for layer in layers:
            yield name, layer
