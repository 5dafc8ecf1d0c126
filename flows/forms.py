"""
The types of what people type into Prefect's forms; the server checks the patterns before a run begins.
"""

from typing import Annotated

from pydantic import Field

RolloutId = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}-[0-9a-f]{8}$", examples=["chat-gpt-5-1a2b3c4d"])]
Reason = Annotated[str, Field(min_length=3, max_length=500)]
Person = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@+-]{0,127}$", examples=["alice"])]
Group = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$", examples=["release-managers"])]
