//! What only BPF sees.
