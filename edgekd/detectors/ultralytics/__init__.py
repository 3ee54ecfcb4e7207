"""Ultralytics detectors (YOLOv8, 11, 26; RT-DETR as teacher). Only this folder imports Ultralytics (AGPL-3.0)."""
