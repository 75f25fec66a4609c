"""The live router: the policy and the twin that are simulated, in front of real servers."""
