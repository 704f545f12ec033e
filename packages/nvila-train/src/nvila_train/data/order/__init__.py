"""Which sample comes when: mixtures by weight, an order for every epoch."""
