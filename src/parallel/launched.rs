//! What the launcher says of this process.

/// The place of this process among those that were launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launched {
    /// Which process of the job it is.
    pub rank: usize,
    /// Processes of the job.
    pub size: usize,
    /// Which process on this machine it is.
    pub local_rank: usize,
    /// Processes on this machine, where the launcher says how many.
    pub local_size: Option<usize>,
}

/// What an MPI launcher says in the environment, if one started this process.
pub fn launched() -> Option<Launched> {
    told(|name| std::env::var(name).ok()?.parse().ok())
}

/// Open MPI says all, other launchers some of it; Slurm's own variables count only beside those of a process manager,
/// as `srun` sets them for processes that know nothing of each other as well.
fn told(number: impl Fn(&str) -> Option<usize>) -> Option<Launched> {
    let first = |names: &[&str]| names.iter().find_map(|n| number(n));
    let rank = first(&["OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"])?;
    let size = first(&["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"])?;
    let local_rank = first(&["OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID"]).unwrap_or(0);
    let local_size = first(&["OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"]);
    Some(Launched { rank, size, local_rank, local_size })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launchers_are_understood() {
        let of = |list: &[(&str, usize)]| told(|name| list.iter().find(|(n, _)| *n == name).map(|(_, v)| *v));
        let whole = Launched { rank: 3, size: 4, local_rank: 1, local_size: Some(2) };
        let open_mpi = [
            ("OMPI_COMM_WORLD_RANK", 3),
            ("OMPI_COMM_WORLD_SIZE", 4),
            ("OMPI_COMM_WORLD_LOCAL_RANK", 1),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", 2),
        ];
        assert_eq!(of(&open_mpi), Some(whole));
        let slurm = [("PMIX_RANK", 3), ("SLURM_STEP_NUM_TASKS", 4), ("SLURM_NTASKS", 8), ("SLURM_LOCALID", 1)];
        assert_eq!(of(&slurm), Some(Launched { local_size: None, ..whole }));
        // A Slurm array or a step without MPI: each process is alone.
        assert_eq!(of(&[("SLURM_PROCID", 3), ("SLURM_NTASKS", 4), ("SLURM_LOCALID", 3)]), None);
        assert_eq!(of(&[]), None);
    }
}
