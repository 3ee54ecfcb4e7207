"""State of a camera: its slots, the trial of a bundle, the device, and the JSON documents of all of these."""
