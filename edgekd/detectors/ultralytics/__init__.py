"""Ultralytics detectors (YOLOv3 to 26, RT-DETR). Only this folder imports Ultralytics (AGPL-3.0)."""
