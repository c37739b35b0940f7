"""Advantage estimators, one file each: `__call__(rollouts) -> advantages_BT`."""
