"""Buttervolume: Docker volumes that are BTRFS subvolumes."""
