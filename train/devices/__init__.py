"""Where a run lies: meshes of devices, and several processes that train one model."""
