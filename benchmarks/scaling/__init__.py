"""How many replicas a load needs: measured costs, a simulation of replicas, and a plan."""
