"""The equations of the learners as pure functions of tensors: td, conservative, munchausen, gate.

Legend: B episodes, T steps, N agents, A actions. Masks are 1 on steps that were played.
"""
