"""Run jobs: claim them, execute their handlers, settle how they ended, keep the lease."""
