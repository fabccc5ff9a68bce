import pytest
import torch
import torch.nn.functional as F

from singer_hf.diagnosis.gradient_share import outlier_gradient_share, outlier_loss_share


def test_the_shares_are_those_of_autograds_gradient_and_of_the_loss():
    prediction = torch.randn(3, 16, 8, dtype=torch.float64, requires_grad=True)
    target = torch.randn(3, 16, 8, dtype=torch.float64)
    target[:, 2] *= 9
    outliers = torch.zeros(3, 16, dtype=torch.bool)
    outliers[:, 2] = True
    loss = F.mse_loss(prediction, target)
    (gradient,) = torch.autograd.grad(loss, prediction)
    norms = gradient.norm(dim=-1)
    share = outlier_gradient_share(prediction, target, outliers)
    assert share == pytest.approx((norms[outliers].sum() / norms.sum()).item(), rel=1e-12)
    of_outliers = (prediction - target).square()[outliers].sum() / (prediction - target).square().sum()
    assert outlier_loss_share(prediction, target, outliers) == pytest.approx(of_outliers.item(), rel=1e-12)
