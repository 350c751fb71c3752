"""The presses of NVIDIA's kvpress (Apache-2.0) as scorers and allocators. The user installs kvpress separately.

kvpress's own hooks are not used. A press scores a layer from the hidden states of the shared prefill, or from the
layer's keys and values alone. docs/kvpress.md lists the supported and the refused presses.
"""
