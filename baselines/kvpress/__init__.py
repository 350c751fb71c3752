"""The presses of NVIDIA's kvpress (Apache-2.0) as scorers and allocators; kvpress itself is installed by the user.

kvpress's own hooks are not used. A press scores a layer from the hidden states that the shared prefill shows, or from
its keys and values alone. docs/kvpress.md lists the presses, and those that are refused.
"""
