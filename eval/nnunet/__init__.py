"""A trainer for nnU-Net v2; GUIDE.md says how it is used. nnU-Net searches this folder: nothing else belongs here."""
