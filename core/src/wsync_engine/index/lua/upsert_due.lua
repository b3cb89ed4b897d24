-- KEYS inc, due, rev, firing; ARGV[3…] (id, rev, due)*. Returns how many were newer than what is stored.
return upsert(KEYS[2], KEYS[3], KEYS[4], 3, (#ARGV - 2) / 3)
