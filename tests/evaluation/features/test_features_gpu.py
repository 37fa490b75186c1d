"""Features on a GPU, apart from the other tests of features: a machine without their packages can collect this one."""

import pytest
import torch


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_is_the_same_on_a_gpu() -> None:
    pytest.importorskip("efficientnet_lite_pytorch", reason="efficientnet-lite-pytorch is not installed")
    pytest.importorskip("torch_fidelity", reason="torch-fidelity is not installed")
    from unveil.evaluation.features.extraction import extract, load_extractor

    extractor = load_extractor("efficientnet-lite0")
    images = torch.randint(0, 256, (11, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    on_cpu = extract(images, extractor, batch_size=64, device="cpu")
    for batch in (3, 64):
        found = extract(images, extractor, batch_size=batch, device="cuda")
        assert found.device.type == "cpu"
        torch.testing.assert_close(found, on_cpu, rtol=1e-3, atol=1e-3)
