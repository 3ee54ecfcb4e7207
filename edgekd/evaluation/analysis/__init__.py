"""Why and where a detector lost accuracy: detections, layers and attention, before and after."""
