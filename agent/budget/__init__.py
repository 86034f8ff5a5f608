"""The one owner of what the agent may take of its pod: time, GPU memory and RAM, over all its work together.

duty      time: one duty cycle for replay, comparing, holdouts and timing
pace      work in steps, each paid for before the next
shares    fair turns and fair levels among model versions
memory    arenas of GPU memory and RAM: leases that are granted or refused, and counted
owner     both, as the options set them, with their metrics
"""
