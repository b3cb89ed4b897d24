-- ARGV[4] = how the holds end: ended or refused; ARGV[5…] runs. Gives back what they hold, once; returns how many were held.
local runs = {unpack(ARGV, 5)}
if #runs == 0 then return 0 end
local members = release(runs, ARGV[4])
readmit_after(members)
return finish(#members)
