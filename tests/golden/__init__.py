"""Values that official code gave, and the deterministic weights and inputs they were made with."""
