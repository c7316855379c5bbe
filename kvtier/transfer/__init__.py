"""Device pages <-> arena slots: one engine per kind of device behind one interface."""
