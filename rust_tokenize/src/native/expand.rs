//! Unrolls run-length coded tables when compiled, so that their source stays readable in size.

/// The values of `runs`, each as often as its length says; `N` is their number.
pub(super) const fn expand<const N: usize>(runs: &[(u16, u8)]) -> [u8; N] {
    let mut values = [0; N];
    let (mut filled, mut run) = (0, 0);
    while run < runs.len() {
        let end = filled + runs[run].0 as usize;
        while filled < end {
            values[filled] = runs[run].1;
            filled += 1;
        }
        run += 1;
    }
    assert!(filled == N, "the runs of a table must fill it");
    values
}
