"""The main job: from a detector and a recipe to a bundle, stage by stage."""
