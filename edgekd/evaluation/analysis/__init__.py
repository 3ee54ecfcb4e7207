"""Analysis of lost accuracy: detections, layers and attention, before and after a build."""
