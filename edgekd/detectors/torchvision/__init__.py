"""torchvision's one-stage detectors, in files of edgekd's own: `*.tv.pt`."""
