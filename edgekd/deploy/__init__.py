"""From a graph to a camera: bundles, signatures, firmware files, devices, other formats."""
