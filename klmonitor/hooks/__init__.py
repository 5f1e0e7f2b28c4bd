"""What adapters of trainers share: how a trainer is wrapped, fed from, and acted upon."""
