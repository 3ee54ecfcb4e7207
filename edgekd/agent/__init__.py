"""The agent: what verifies a bundle on a camera, makes its engine there, tests it, and puts it into service.

Runs on the device: Python 3.8 or newer, standard library and NumPy; whatever else it uses must already be there. It
travels in every bundle as one zipapp, which `edgekd.deploy.agent_zipapp` makes.
"""
