"""Who holds the order: in this process, or shared between replicas."""
