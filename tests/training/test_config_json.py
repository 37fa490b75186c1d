"""config.json names what is read; one that names everything, as models of before have, is the same model."""

import json
from pathlib import Path

from unveil.model import CONFIG_FILE, ModelConfig

WITH_ALL_KEYS = Path(__file__).parent / "config_with_all_keys.json"


def test_a_config_of_before_and_one_of_what_is_read_are_the_same_model(tmp_path: Path) -> None:
    stored = json.loads(WITH_ALL_KEYS.read_text(encoding="utf-8"))
    (tmp_path / CONFIG_FILE).write_text(json.dumps(stored), encoding="utf-8")
    model = ModelConfig.load(tmp_path)
    assert {**stored["network"]} == model.network.read_values()
    assert all(getattr(model.diffusion, key) == value for key, value in stored["diffusion"].items())
    named = model.to_dict()
    assert set(named["diffusion"]) >= {"path", "logit_mean", "t_min", "huber_scale"}
    assert not {"beta_start", "sigma_max", "p_mean", "min_snr_gamma"} & set(named["diffusion"])
    (tmp_path / CONFIG_FILE).write_text(json.dumps(named), encoding="utf-8")
    again = ModelConfig.load(tmp_path)
    assert again.to_dict() == named
    assert again.network == model.network
    assert again.build().path == model.build().path
