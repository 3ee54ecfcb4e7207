"""Detectors by Roboflow's rfdetr (Apache-2.0): checkpoints of RF-DETR that its training writes."""
