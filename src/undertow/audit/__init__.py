"""What will these rows teach: reference, signals, calibration, verdict."""
