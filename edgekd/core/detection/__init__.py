"""From a frame to detections: letterbox, decoding, suppression of duplicates."""
