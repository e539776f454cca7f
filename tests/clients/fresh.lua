-- For wrk: no two requests are for the same path.
local threads, calls = 0, 0

function setup(thread)
  threads = threads + 1
  thread:set("number", threads)
end

function request()
  calls = calls + 1
  return wrk.format("GET", "/" .. number .. "/" .. calls .. "/" .. math.random(1, 1000000000))
end
