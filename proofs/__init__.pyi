from .engine.interpreter.interpret import interpret as interpret
from .engine.verify import verify as verify
