"""Detectors by LibreYOLO (MIT): checkpoints of YOLOX, YOLOv9, PicoDet, RTMDet, PP-YOLOE and DETRs."""
