"""Numbers by which papers tell a skill that training taught from one that it switched on."""
