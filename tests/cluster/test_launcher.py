from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

LAUNCHER = Path(__file__).parents[2] / "ray_config.yaml"


def test_the_launcher_accepts_the_cluster_file():
    config = yaml.safe_load(LAUNCHER.read_text())
    validate_config(prepare_config(config))
    assert config["available_node_types"]["gpu_worker"]["max_workers"] <= config["max_workers"]


def test_the_launcher_would_refuse_a_misspelt_key():
    config = yaml.safe_load(LAUNCHER.read_text()) | {"max_worker": 1}
    with pytest.raises(Exception, match="max_worker"):
        validate_config(prepare_config(config))
