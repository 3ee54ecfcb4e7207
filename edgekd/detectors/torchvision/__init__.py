"""torchvision's one-stage detectors, in edgekd's own file format `*.tv.pt`."""
