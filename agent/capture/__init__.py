"""What is observed of a model, at what cost, on which device.

choice        which probes the user wants
calibration   what observing them costs here, by timing; groups: how to share it over several batches
rotation      one session for each group of probes, each in its turn
pressure      how large a batch the device takes now, and when the GPU is given up or tried again
engine        runs batches of one model version through all of that
"""
