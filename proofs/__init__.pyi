from .engine.interpreter.interpret import interpret as interpret
from .engine.interpreter.second_opinion import second_opinion as second_opinion
from .engine.verify import verify as verify
