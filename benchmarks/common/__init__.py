"""What every benchmark needs: processes and their accounting, peers, figures, results."""
