"""The agent: it verifies a bundle on a camera, builds its engine there, tests it, and puts it into service.

Runs on the device: Python 3.8 or newer, standard library and NumPy; other libraries are those of the firmware. It
travels in every bundle as one zipapp, which `edgekd.deploy.agent_zipapp` makes.
"""
