"""Golden databases: files of earlier versions with runs in every state, which each later version reads and finishes."""
