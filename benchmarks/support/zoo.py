"""Models of other people: torchvision's classifiers, the smallest of each of timm's families, and Hugging Face's."""

import importlib
from typing import Any

import torch
from torch import nn

from support import huggingface

# torchvision registers these from a library that does not load beside a CPU-only torch; its Python needs their names.
_OPERATORS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "roi_align": (
        "(Tensor input, Tensor rois, float spatial_scale, int pooled_height, int pooled_width, int sampling_ratio, "
        "bool aligned) -> Tensor"
    ),
}
TORCHVISION = """
    alexnet convnext_base convnext_large convnext_small convnext_tiny densenet121 densenet161 densenet169
    densenet201 efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_b5
    efficientnet_b6 efficientnet_b7 efficientnet_v2_l efficientnet_v2_m efficientnet_v2_s googlenet inception_v3
    maxvit_t mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3 mobilenet_v2 mobilenet_v3_large mobilenet_v3_small
    regnet_x_16gf regnet_x_1_6gf regnet_x_32gf regnet_x_3_2gf regnet_x_400mf regnet_x_800mf regnet_x_8gf
    regnet_y_128gf regnet_y_16gf regnet_y_1_6gf regnet_y_32gf regnet_y_3_2gf regnet_y_400mf regnet_y_800mf
    regnet_y_8gf resnet101 resnet152 resnet18 resnet34 resnet50 resnext101_32x8d resnext101_64x4d
    resnext50_32x4d shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0 squeezenet1_0
    squeezenet1_1 swin_b swin_s swin_t swin_v2_b swin_v2_s swin_v2_t vgg11 vgg11_bn vgg13 vgg13_bn vgg16
    vgg16_bn vgg19 vgg19_bn vit_b_16 vit_b_32 vit_h_14 vit_l_16 vit_l_32 wide_resnet101_2 wide_resnet50_2
    """.split()  # noqa: SIM905 - a plain list of words reads best
TIMM = """
    beit_base_patch16_224 eca_botnext26ts_256 mobileone_s1 cait_xxs24_224 coat_tiny convit_tiny
    convmixer_1024_20_ks9_p14 convnext_atto_rms cpubone_nano crossvit_tiny_240 csatv2 cs3darknet_focus_s
    cspnext_tiny davit_tiny deepseek_vit_412m deit_tiny_patch16_224 densenet264d dla102x dpn107
    edgenext_xx_small efficientformer_l1 efficientformerv2_s0 efficientnet_lite0 efficientvim_m1 efficientvit_b0
    efficientvit_m0 eva02_tiny_patch14_224 fasternet_t0 fastvit_s12 focalnet_tiny_srf gcvit_xxtiny
    gemma4_vit_167m ghostnet_050 hardcorenas_b hgnetv2_b0 hiera_tiny_224 sam2_hiera_tiny hrnet_w18_small
    iformer_t inception_next_atto inception_resnet_v2 inception_v3 inception_v4 lcnetv2_small levit_128s
    lowformer_b0 mambaout_femto maxvit_pico_rw_256 poolformerv2_s12 gmlp_ti16_224 mobilenetv3_small_050
    mobilenetv5_base mobilevit_xxs mvitv2_tiny naflexvit_base_patch16_parfac_gap nasnetalarge nest_tiny
    nextvit_small nf_regnet_b0 pit_xs_224 pnasnet5large pvt_v2_b0 qwen3_vit_88m rdnet_tiny regnetx_002
    repghostnet_050 repvit_m0_9 res2net50_14w_8s resnest14d resnet10t resnetv2_18 rexnet_100 selecsls42
    legacy_seresnet18 sequencer2d_s shvit_s1 skresnet18 starnet_s100 swiftformer_xs swin_tiny_patch4_window7_224
    swinv2_tiny_window8_256 swinv2_cr_tiny_224 tiny_vit_5m_224 tnt_s_legacy_patch16_224 tresnet_m
    twins_svt_small vgg11 visformer_tiny beit3_base_patch16_224 vit_tiny_r_s16_p8_224
    vit_srelpos_small_patch16_224 samvit_base_patch16_224 vitamin_small_224 volo_d1_224 ese_vovnet19b_slim_dw
    legacy_xception xception41p xcit_nano_12_p8_224
    """.split()  # noqa: SIM905
# Their own images have 546 or 768 pixels, and a forward costs several seconds; on small ones the layers are the same.
SMALLER = {"deepseek_vit_412m", "gemma4_vit_167m", "qwen3_vit_88m"}
SOURCES = {"torchvision": TORCHVISION, "timm": TIMM, "transformers": [*huggingface.ARCHITECTURES]}


def build(source: str, name: str, batch_size: int) -> tuple[nn.Module, Any]:
    """Return an untrained model in evaluation mode, and a batch of its own input size (a dict of names for some)."""
    define_operators()
    if source == "transformers":
        return huggingface.build(name, batch_size)
    if source == "timm":
        sized = {"img_size": 224} if name in SMALLER else {}
        model: Any = importlib.import_module("timm").create_model(name, **sized)
        size = (3, 224, 224) if sized else model.default_cfg["input_size"]
        return model.eval(), torch.randn(batch_size, *size)
    extra = {"aux_logits": False, "init_weights": False} if name in {"googlenet", "inception_v3"} else {}
    model = importlib.import_module("torchvision.models").get_model(name, **extra)
    size = {"inception_v3": 299}.get(name, 224)
    return model.eval(), torch.randn(batch_size, 3, size, size)


def define_operators() -> None:
    """Define the operators without which torchvision, and what looks for it, does not import."""
    for name, schema in _OPERATORS.items():
        try:
            torch.library.define(f"torchvision::{name}", schema)
        except RuntimeError:  # the library has loaded
            return
