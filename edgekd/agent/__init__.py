"""The agent: it verifies a bundle on a camera, builds its engine there, tests it, and puts it into service.

Runs on the device: Python 3.8 or newer, standard library and NumPy; other libraries that it uses must already be there. It
travels in every bundle as one zipapp, which `edgekd.deploy.agent_zipapp` makes.
"""
