"""Where calls are made: in this process, or on a cluster.

Knows nothing of what is called. `executor` says what one can ask of either, `local` is
this process, `ray_cluster` a Ray cluster (the only module that knows Ray).
"""
