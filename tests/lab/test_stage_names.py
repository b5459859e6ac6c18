from hessprune.lab.stage_names import STAGES, spoken_stage
from hessprune.lab.store import VERSIONS


def test_every_kind_of_stage_has_words():
    assert set(VERSIONS) <= set(STAGES)
    assert spoken_stage("5-finetuned-joint") == "fine-tuning, joint"
    assert spoken_stage("1-dense") == "the dense model"
    assert spoken_stage("8-bit kernels") == "8-bit kernels"
