"""Ultralytics' (AGPL-3.0) names for training and pruning, imported only here.

On its first import Ultralytics logs to stdout, which is reserved for results.
"""

from __future__ import annotations

import sys
from contextlib import redirect_stdout

with redirect_stdout(sys.stderr):
    from ultralytics.data.dataset import YOLODataset as YOLODataset
    from ultralytics.models.yolo.detect import DetectionTrainer as DetectionTrainer
    from ultralytics.nn.modules.block import C2PSA as C2PSA
    from ultralytics.nn.modules.block import AAttn as AAttn
    from ultralytics.nn.modules.block import Attention as Attention
    from ultralytics.nn.modules.block import C2f as C2f
    from ultralytics.nn.modules.block import PSABlock as PSABlock
    from ultralytics.nn.modules.conv import Conv as Conv
    from ultralytics.nn.modules.conv import RepConv as RepConv
    from ultralytics.nn.modules.transformer import AIFI as AIFI
    from ultralytics.nn.tasks import DetectionModel as DetectionModel
    from ultralytics.nn.tasks import RTDETRDetectionModel as RTDETRDetectionModel
    from ultralytics.nn.tasks import yaml_model_load as yaml_model_load
    from ultralytics.utils import DEFAULT_CFG as DEFAULT_CFG
    from ultralytics.utils import LOGGER as LOGGER
    from ultralytics.utils import RANK as RANK
    from ultralytics.utils.callbacks import get_default_callbacks as get_default_callbacks
    from ultralytics.utils.loss import v8DetectionLoss as v8DetectionLoss
    from ultralytics.utils.torch_utils import init_seeds as init_seeds
    from ultralytics.utils.torch_utils import unwrap_model as unwrap_model
